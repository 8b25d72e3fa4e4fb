"""The pages that stages write for people: reports, studies, caption sets, model cards."""
