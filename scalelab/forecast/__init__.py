"""What a fitted law says to train, and how sure that is."""
