"""What a run shows: its log as numbers, figures, expected ranges, corrupted text with the encoder's verdicts."""
