"""Looking inside: traces, taps, and what can be read from them. Knows no files, servers or tokenizers' insides."""
