"""A tokenizer of images."""
