"""policy/balance"""
