"""Offline scoring: ``python -m service.score INPUT OUTPUT --bundle B``, on Ray Data's actor pool.

The input is divided into parts: row groups of Parquet files, ranges of idx files, runs of image
files. Each part is a unit of work with its own output file, which is renamed into place once it is
complete, so that a killed run can resume. In the order of the data: ``source`` lists the input's
files, ``parts`` divides them, ``reader`` reads a part's rows with the help of ``columns``,
``scorer`` runs the verified model, ``output`` writes. ``pool`` distributes the parts over Ray's
actors, ``run`` combines all of these, and ``cli`` is the command line.
"""
