"""What each verb would do, measured on a little of it; `attar.recipes.plan` puts the question."""
