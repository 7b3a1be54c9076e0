"""What an exchange cost: read from the provider's answer, or counted where it does not say.

`meter` watches one answer pass, `openai` knows where that dialect puts usage and text, `estimate`
counts what nobody reported.
"""
