"""Files by their names, wherever they lie: on this machine, behind a URL, in a tar shard, in a cell of Parquet."""
