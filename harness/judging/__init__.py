"""What results mean: values found by label, ratios, tables, differences, and predictions held to account."""
