"""From records to tensors and models: vocabulary, collator, data sets, attention. Needs torch."""
