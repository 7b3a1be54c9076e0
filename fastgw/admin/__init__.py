"""The operator's side: an HTTP server by the book (h11) for metrics, health and budgets, and the
client with which commands ask it. Knows nothing of exchanges: it is handed what it shows."""
