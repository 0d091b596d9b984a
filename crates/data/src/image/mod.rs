//! Pictures: decoding, resampling, preprocessing.
