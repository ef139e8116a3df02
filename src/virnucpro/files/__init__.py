"""Records of FASTA files, tables of lengths, and plans on disk. Needs pyarrow."""
