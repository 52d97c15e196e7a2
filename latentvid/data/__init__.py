"""Clips and images: manifests, decoding, transforms, plans of packs, cached latents."""
