"""What is known of models that lie in the stores of other programs; pure."""
