"""Files, streams and data sets of the Hub to numbered lines of JSON: row_files -> hub_datasets -> local_files."""
