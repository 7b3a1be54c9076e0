"""The provider's side: connections to providers and the pools that keep them."""
