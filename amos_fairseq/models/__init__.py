"""fairseq's view of the methods' networks."""
