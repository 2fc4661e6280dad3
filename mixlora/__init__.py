"""Conditional Mixture-of-LoRA (Shen et al., ACL 2024) and the data it is trained and measured on."""
