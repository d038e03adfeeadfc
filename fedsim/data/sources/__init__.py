"""Where data are found: by name, folder or table, with labels as numbers. Nothing of their modality."""
