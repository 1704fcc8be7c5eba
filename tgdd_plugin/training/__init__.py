"""Training networks with a Composer Trainer, one at a time or several at once."""
