"""What several methods share. None of these modules is a method that a run can choose."""
