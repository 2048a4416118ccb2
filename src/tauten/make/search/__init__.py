"""From a task and a budget to the best artifact: recipes are made, measured together, and held against the budget."""
