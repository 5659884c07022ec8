"""Tests of the transfer methods."""
