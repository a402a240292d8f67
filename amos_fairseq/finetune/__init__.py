"""Fine-tuning: labelled tasks, what reads them, and what the papers searched."""
