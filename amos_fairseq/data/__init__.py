"""Data: from raw text to the masked, cropped and packed batches that the methods read."""
