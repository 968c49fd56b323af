"""What all reports share: tables, sentences, plots."""
