"""Backbones by name, the adapter sites found in them, and the LightningModule that every worker trains."""
