"""Parity: does an exported file compute what its checkpoint computes, and how is that known?"""
