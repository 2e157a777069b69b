"""Reader studies: blinded scans, questions for readers, their answers and what these show."""
