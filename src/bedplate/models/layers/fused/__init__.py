"""Operations that inference fuses into one kernel or product."""
