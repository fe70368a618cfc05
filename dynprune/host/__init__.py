"""What is done to somebody's model without leaving a trace."""
