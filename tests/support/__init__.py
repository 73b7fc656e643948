"""What tests share. It holds no tests."""
