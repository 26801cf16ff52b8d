"""Files, streams and Hub datasets to numbered lines of JSON: row_files -> hub_datasets -> local_files."""
