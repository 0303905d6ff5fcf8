"""What several test files build or read: plain functions, without a test."""
