"""Read FASTA files and tables of lengths; read and write plan files.

Needs pyarrow, but for `fasta` and `record_file`, which need no more than a decompressor.
"""
