"""The HTTP app: an OpenAI-compatible API, and the page with its inspection API."""
