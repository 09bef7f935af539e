"""Plan, train, record, fit and decide: scaling laws for language models, end to end."""

__version__ = "0.1.0"
