"""From records to tensors and models: tokens, data sets, loader, sampler, attention. Needs torch."""
