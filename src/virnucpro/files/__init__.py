"""Read FASTA files and tables of lengths; read and write plan files. Needs pyarrow."""
