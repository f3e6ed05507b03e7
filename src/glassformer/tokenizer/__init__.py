"""Text and tokens: ids to text and back, words, and the data that training reads."""
