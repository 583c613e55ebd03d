"""What is measured of a classifier: accuracy, clean, attacked, corrupted, as curves."""
