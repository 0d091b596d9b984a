//! Datasets: image folders, tables, tar shards; shuffling, batching and exact resume.
