"""Generator, encoder, and the Hugging Face directories they come from and go to."""
