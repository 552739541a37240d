"""Streaming payment-fraud scoring with a temporal graph network."""
