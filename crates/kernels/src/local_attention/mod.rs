//! local_attention
