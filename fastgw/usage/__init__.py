"""What an exchange cost: read from the provider's answer, or counted where it does not say.

`meter` watches one answer pass, `api` and its formats know where each puts usage and text, `tokens`
and `prompt` count what nobody reported: by a `vocabulary`, or by bytes (`estimate`).
"""
