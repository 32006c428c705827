"""Images and masks: from files, from the web, from the synthetic generator."""
