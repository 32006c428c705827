"""What runs say: statistics, claims, tables and curves."""
