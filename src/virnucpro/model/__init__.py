"""From records to models: tokens, data sets, loader, sampler, attention. Needs torch."""
