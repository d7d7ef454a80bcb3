"""The page that shows a dataset folder as people and as the model see it."""
