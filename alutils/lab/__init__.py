"""What notebooks show and let a person do: figures, explorers, drawing."""
